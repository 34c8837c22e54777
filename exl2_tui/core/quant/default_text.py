"""Original text for the built-in calibration set: short pieces of different kinds, written for this project.

They are the part that no machine has by itself: tales, letters, talk, questions and answers, several languages.
Documentation and code come from the Python installation, see `calibration.py`.
"""

from __future__ import annotations

PROSE: tuple[str, ...] = (
    "The ferry left the harbour at six in the morning, when the lamps on the pier were still lit. Old "
    "Marten had made the crossing so often that he no longer looked at the water; he looked at the "
    "people instead. There was a woman with a cage of finches, two boys who shared one coat, and a man "
    'who slept with his hat on his knees. "You will have wind after noon," Marten told the captain, and '
    "the captain, who knew it already, nodded and thanked him.",
    "Once there was a little fox who was afraid of her own shadow. Every evening, when the sun stood "
    'low, the shadow grew long and thin and ran before her through the grass. "Go away!" said the fox, '
    'but the shadow did not listen. One day she met a tortoise. "Why are you running?" asked the '
    'tortoise. The fox told him everything. The tortoise laughed kindly and said, "Turn round, and walk '
    'towards the sun." She did, and the shadow was gone. From that day on they walked home together, and '
    "the fox was never afraid again.",
    "The town lies on the north bank of the river, about forty kilometres from the coast. It was founded "
    "in the twelfth century by weavers, received market rights in 1241 and had about 8,400 inhabitants "
    "in the last census. The railway reached it in 1869. Its economy rests on timber, glass and, since "
    "the 1960s, on summer visitors. The church of Saint Anne, rebuilt after a fire in 1733, has a wooden "
    "ceiling with paintings of the four seasons.",
    "Water moves in a circle. The sun warms the sea, and some of the water rises into the air as vapour. "
    "High above the ground the vapour cools and gathers into drops, and the drops form clouds. When the "
    "drops are heavy enough they fall as rain or snow. Some of the rain is taken up by plants, some "
    "sinks into the ground, and the rest runs down into streams and rivers until it reaches the sea "
    "again.",
    "Dear Ruth, thank you for the seeds. I put the beans along the south wall, as you advised, and they "
    "are already higher than my knee. The dog has dug up half of the carrots, so you need not ask about "
    "those. Mother is better. She reads the paper aloud at breakfast and disagrees with all of it, which "
    "the doctor says is a good sign. Come in August if you can; the room under the roof is yours. With "
    "love, Henrik.",
    "To make a simple soup for four people, peel three potatoes and two carrots and cut them into small "
    "cubes. Chop one onion finely and fry it in a spoonful of butter until it is soft. Add the "
    "vegetables, pour in a litre of stock and let it boil gently for twenty minutes. Season with salt, "
    "pepper and a little nutmeg. If you like it smooth, mash it with a fork; if you like it rich, stir "
    "in some cream before serving.",
    "The committee met on Tuesday to discuss the new bridge. The engineer reported that the ground on "
    "the eastern side is softer than expected, and that the foundations would cost nine percent more. "
    "Two members asked whether the old bridge could be repaired instead. After a long discussion the "
    "plan was approved by seven votes to four. Work is to begin in the spring, and traffic will be led "
    "through the mill road until the end of the year.",
    "It was a night without a moon. Clara held the lantern close to the wall and counted the steps: "
    "eleven, twelve, thirteen. At the thirteenth the stone moved under her hand. She had never believed "
    "her grandfather's stories, not one of them, and yet here was the door he had described, no higher "
    "than a child, with a ring of black iron. She listened. Somewhere below, very faintly, somebody was "
    "playing the piano.",
    "Bees can tell each other where they have found flowers. A bee that returns to the hive walks in a "
    "straight line across the comb and waggles its body, then circles back and repeats the walk. The "
    "angle of the line shows the direction of the flowers as seen from the sun, and the length of the "
    "waggle shows how far they are. The others follow closely with their feelers, since it is dark in "
    "the hive, and then fly out to look for themselves.",
    "The lighthouse keeper wrote down the weather three times a day for thirty-one years. Nobody had "
    "asked him to. When the station was closed, the notebooks filled two chests, and a young woman from "
    'the university came to fetch them. "Do you know what this is worth?" she asked. He said that he did '
    "not. She told him that there was no other record of the wind on that coast, none at all, and he "
    "looked out of the window for a while before he answered.",
)

DIALOGUES: tuple[tuple[tuple[str, str], ...], ...] = (
    (
        (
            "Hello! How are you today?",
            "I'm doing well, thank you for asking. What can I do for you?",
        ),
        (
            "Can you tell me what a glacier is?",
            "A glacier is a large mass of ice that moves slowly over land.",
        ),
        (
            "How fast do they move?",
            "Most move less than a metre a day, though a few can move much faster for a time.",
        ),
    ),
    (
        (
            "What is 17 plus 25?",
            "17 plus 25 is 42.",
        ),
        (
            "And 42 divided by 6?",
            "42 divided by 6 is 7.",
        ),
        (
            "Thanks, that helps a lot.",
            "You're welcome! Let me know if you have more sums.",
        ),
    ),
    (
        (
            "Write a short poem about autumn.",
            "Leaves of copper, leaves of red,\nWhisper softly overhead.\nSummer packs its bags to go,\nLeaving room "
            "for winter's snow.",
        ),
        (
            "Now one about the sea.",
            "Blue and grey and never still,\nClimbing up the harbour sill,\nSinging songs of salt and foam,\n"
            "Calling all the sailors home.",
        ),
    ),
    (
        (
            "I feel a bit sad this evening.",
            "I'm sorry to hear that. Would you like to talk about what happened?",
        ),
        (
            "My best friend moved to another city.",
            "That is hard. You can still call and visit, and it is fine to miss somebody you care about.",
        ),
        (
            "You're right. I'll call her tomorrow.",
            "That sounds like a good plan. She will be happy to hear from you.",
        ),
    ),
    (
        (
            "What is the capital of France?",
            "The capital of France is Paris.",
        ),
        (
            "Give me three things to see there.",
            "1. The Eiffel Tower\n2. The Louvre\n3. The gardens along the Seine",
        ),
    ),
    (
        (
            "How do I reverse a list in Python?",
            "Use `items.reverse()` to reverse it in place, or `items[::-1]` to get a reversed copy.",
        ),
        (
            "What does 'in place' mean?",
            "It means that the list itself is changed and no new list is made.",
        ),
    ),
    (
        (
            "I'd like to book a table for two.",
            "Of course. For which day and what time would you like the table?",
        ),
        (
            "Friday at half past seven, please.",
            "A table for two on Friday at 7:30 pm. What name shall I put it under?",
        ),
        (
            "Berger. B-E-R-G-E-R.",
            "Thank you. Your table is reserved, and we look forward to seeing you on Friday.",
        ),
    ),
    (
        (
            "Tell me a joke.",
            "Why did the scarecrow win a prize? Because he was outstanding in his field.",
        ),
        (
            "Ha! Another one?",
            "What do you call a bear with no teeth? A gummy bear.",
        ),
    ),
    (
        (
            "Summarize: The meeting was moved from Monday to Wednesday because the train drivers are on strike.",
            "The meeting is now on Wednesday because of a train strike.",
        ),
        (
            "Make it even shorter.",
            "Strike: meeting moved to Wednesday.",
        ),
    ),
    (
        (
            "What does the word 'brittle' mean?",
            "Brittle means hard but easily broken, like thin ice or old glass.",
        ),
        (
            "Use it in a sentence.",
            "The pages of the old book were so brittle that we hardly dared to turn them.",
        ),
    ),
)

LANGUAGES: tuple[str, ...] = (
    "Der Zug fuhr langsam durch das Tal, und an jeder Station stiegen weniger Leute aus als ein. Am "
    "Fenster saß ein Junge, der die Brücken zählte. Bei der siebten schlief er ein. Als er aufwachte, "
    "war es dunkel, und seine Mutter hatte ihm ihre Jacke über die Knie gelegt.",
    "Le marché ouvre à huit heures. On y trouve des pommes, du fromage, des fleurs et, le samedi, un "
    "vieil homme qui répare les parapluies. Il ne parle pas beaucoup, mais il connaît le nom de chaque "
    "enfant du quartier.",
    "La casa estaba al final de una calle sin salida, detrás de dos naranjos. En verano las ventanas "
    "quedaban abiertas toda la noche y se oía el mar. Mi abuela decía que el mar nunca duerme, solo baja "
    "la voz.",
    "Il fornaio si alza alle tre. Accende il forno, mescola la farina con l'acqua e il sale e ascolta la "
    "radio. Quando arriva il primo cliente, il pane è già sul banco, ancora caldo.",
    "O rio nasce na serra e atravessa quatro cidades antes de chegar ao mar. Antigamente transportava "
    "madeira; hoje leva canoas, patos e, de vez em quando, uma bola perdida.",
    "De brug gaat open als er een schip komt. Dan staan alle fietsers stil en kijken naar het water. "
    "Niemand moppert, want iedereen weet dat het maar vijf minuten duurt.",
    "Зимой в деревне рано темнеет. Дети катаются с горки до самого вечера, а потом пьют чай с вареньем и "
    "слушают, как бабушка рассказывает сказку о медведе, который боялся снега.",
    "Pociąg spóźnił się o godzinę, więc poszliśmy na spacer po mieście. Na rynku grała orkiestra, a "
    "gołębie chodziły między krzesłami, jakby czekały na swoją kolej.",
    "春天来了,河边的柳树发了芽。孩子们在草地上放风筝,老人坐在长椅上下棋。远处传来火车的声音。",
    "朝の市場には魚と野菜が並んでいる。店の人は大きな声で客を呼び、猫は静かに足もとを歩く。",
    "Kahve soğumuştu ama kimse kalkmak istemiyordu. Dışarıda yağmur yağıyor, içeride eski bir şarkı çalıyordu.",
    "في الصباح يفتح الصياد شباكه على الشاطئ، ويجلس الأطفال حوله ليسمعوا حكايات البحر.",
)
